//go:build race

package raft_test

// slowdown is what the race detector costs these tests.
const slowdown = 2
