//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// detach gives a server its own session, so that only this program gets Ctrl-C from
// the terminal and stops the servers after the tests. It also gives it another
// account than root, because most servers refuse to run as root.
func detach(cmd *exec.Cmd, account *user.User) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if account == nil {
		return nil
	}
	uid, gid, err := ids(account)
	if err != nil {
		return err
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return nil
}

// group gives a command its own process group, so that its children get a signal,
// too, and get it once.
func group(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

func signalGroup(leader *os.Process, signal syscall.Signal) error {
	return syscall.Kill(-leader.Pid, signal)
}

func ids(account *user.User) (uid, gid uint32, err error) {
	u, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	g, err := strconv.ParseUint(account.Gid, 10, 32)
	return uint32(u), uint32(g), err
}
