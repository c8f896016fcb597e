//go:build race

package stdio_test

func init() { raceDetector = true }
