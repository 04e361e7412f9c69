package testenv

import (
	"os"
	"os/exec"
	"os/signal"
	"time"
)

// OutliveInterrupt makes this process ignore interrupts until its program handles them. An fx application handles them only
// after it has logged that it runs, and the test can't see when; [Interrupt] repeats the signal until then.
func OutliveInterrupt() { signal.Notify(make(chan os.Signal, 1), os.Interrupt) }

// Interrupt sends a started command the signal of Ctrl-C until it ends, and returns the result of its Wait.
func Interrupt(command *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		_ = command.Process.Signal(os.Interrupt) // fails once it has ended
		select {
		case err := <-ended:
			return err
		case <-again.C:
		}
	}
}
