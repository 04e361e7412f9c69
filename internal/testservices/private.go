package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startWithin is how long a private server may take to start. RabbitMQ
// needs seven seconds on an idle machine; on a busy one all four may need
// minutes.
const startWithin = 5 * time.Minute

// yard has the private servers of one run: their directory and the functions that stop them.
type yard struct {
	find func(program string) (path string, err error)

	mu    sync.Mutex
	root  string // created for the first server
	boxes []*sandbox
}

// fromInstalled implements step 4.
func (y *yard) fromInstalled(ctx context.Context, wanted []service) ([]answer, error) {
	return each(wanted, func(s service) (answer, error) {
		if err := y.lacks(s); err != nil {
			return answer{refusal: err}, nil //nolint:nilerr // a reason for the next step, not a failure
		}
		begin := time.Now()
		url, version, err := y.start(ctx, s)
		if err != nil {
			return answer{}, fmt.Errorf("testservices: start a private %s: %w", s.name, err)
		}
		how := fmt.Sprintf("private (%.1fs)", time.Since(begin).Seconds())
		return answer{url: url, version: version, how: how}, nil
	})
}

func (y *yard) lacks(s service) error {
	for _, program := range s.programs {
		if _, err := y.find(program); err != nil {
			return err
		}
	}
	return nil
}

func (y *yard) start(ctx context.Context, s service) (url, version string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startWithin, fmt.Errorf("no answer within %v", startWithin))
	defer cancel()
	box, err := y.newSandbox(s)
	if err != nil {
		return "", "", err
	}
	if url, err = s.start(ctx, box); err != nil {
		return "", "", err
	}
	version, err = box.await(ctx, s, url)
	return url, version, err
}

func (y *yard) newSandbox(s service) (*sandbox, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.root == "" {
		root, err := os.MkdirTemp("", "leat-testservices-")
		if err != nil {
			return nil, err
		}
		y.root = root
		if err := os.Chmod(root, 0o711); err != nil { //nolint:gosec // other accounts need access to their directory in it
			return nil, err
		}
	}
	box := &sandbox{find: y.find, dir: filepath.Join(y.root, s.name), stopWith: syscall.SIGTERM}
	if err := os.Mkdir(box.dir, 0o700); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		box.account = firstAccount(s.account, "nobody")
	}
	if err := box.own(box.dir); err != nil {
		return nil, err
	}
	box.env = []string{"HOME=" + box.dir, "TMPDIR=" + box.dir, "LANG=C.UTF-8", "PATH=" + searchPath()}
	y.boxes = append(y.boxes, box)
	return box, nil
}

// close stops every server and removes their directory.
func (y *yard) close() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	var group sync.WaitGroup
	for _, box := range y.boxes {
		group.Go(box.stop)
	}
	group.Wait()
	y.boxes = nil
	if y.root == "" {
		return nil
	}
	return os.RemoveAll(y.root)
}

// stopCommands returns the commands that stop servers that keep running.
func (y *yard) stopCommands() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.root == "" {
		return nil
	}
	var kills []string
	for _, box := range y.boxes {
		for _, p := range slices.Backward(box.processes) {
			kills = append(kills, fmt.Sprintf("kill -%d -%d; ", box.stopWith, p.cmd.Process.Pid))
		}
	}
	return []string{strings.Join(kills, "") + "sleep 3; rm -rf " + y.root}
}
