package lab

import (
	"fmt"
	"os"
)

// CPU is what the machine's processors have done since it started, in ticks.
type CPU struct{ Idle, All uint64 }

// ReadCPU reads /proc/stat; zero where there is none.
func ReadCPU() CPU {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}
	}
	// user nice system idle iowait irq softirq steal (proc(5)); a processor that
	// waits for a disk is idle too.
	var f [8]uint64
	if _, err := fmt.Sscanf(string(data), "cpu %d %d %d %d %d %d %d %d", &f[0], &f[1], &f[2], &f[3], &f[4], &f[5], &f[6], &f[7]); err != nil {
		return CPU{}
	}
	c := CPU{Idle: f[3] + f[4]}
	for _, n := range f {
		c.All += n
	}
	return c
}

// IdleSince is the share of time since was in which processors were idle; 1 if
// that is not known.
func (c CPU) IdleSince(was CPU) float64 {
	if c.All <= was.All {
		return 1
	}
	return float64(c.Idle-was.Idle) / float64(c.All-was.All)
}
