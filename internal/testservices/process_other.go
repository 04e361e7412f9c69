//go:build !unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"syscall"
)

// On other systems than Unix, only running servers and containers can be used.

func detach(*exec.Cmd, *user.User) error {
	return errors.New("private servers need Unix; name a running server or start a container engine")
}

func group(*exec.Cmd) {}

func signalGroup(leader *os.Process, _ syscall.Signal) error { return leader.Kill() }

func ids(*user.User) (uid, gid uint32, err error) { return 0, 0, nil }
