package testenv

import (
	"os"
	"os/exec"
	"os/signal"
	"time"
)

// OutliveInterrupt makes this process live on when it is interrupted before its
// program listens. A program of fx's listens only after it has said that it
// runs, and nothing tells from outside when; [Interrupt] goes on until then.
func OutliveInterrupt() { signal.Notify(make(chan os.Signal, 1), os.Interrupt) }

// Interrupt does to a started command what Ctrl-C does, over and over until it
// ends, and returns what its Wait returns.
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
