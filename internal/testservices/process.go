package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopWithin is how long a process may take to end before it is killed.
const stopWithin = 10 * time.Second

// process is a program that runs in its own process group and writes to a log
// file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; cmd.ProcessState is set then
}

// startProcess starts cmd, which must have been detached.
func startProcess(cmd *exec.Cmd, log string) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close() // the process has its own handle
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{name: filepath.Base(cmd.Path), log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // the outcome is read from ProcessState
	}()
	return p, nil
}

// stop sends the process a signal, and kills it and all its children if it does not
// end in time.
func (p *process) stop(signal syscall.Signal) {
	_ = signalGroup(p.cmd.Process, signal) // it may have ended already
	select {
	case <-p.done:
	case <-time.After(stopWithin):
	}
	_ = signalGroup(p.cmd.Process, syscall.SIGKILL)
	<-p.done
}

// tail returns the end of the log, to append to an error.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	const most = 12
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-most):]
	return "\n  | " + strings.Join(lines, "\n  | ")
}
