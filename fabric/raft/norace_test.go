//go:build !race

package raft_test

const slowdown = 1
