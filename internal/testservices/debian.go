package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// debian installs packages on Debian and its derivatives.
type debian struct {
	run      runner
	root     bool
	aptGet   string // path of apt-get; "" if there is none
	policy   string // path of policy-rc.d, which decides whether packages start their service
	progress io.Writer
}

// fromPackages implements step 5: it installs missing packages, and then runs the step
// that starts installed servers.
func (d *debian) fromPackages(installed step) step {
	return func(ctx context.Context, wanted []service) ([]answer, error) {
		if d.aptGet == "" {
			return refuse(wanted, errors.New("no apt-get here")), nil
		}
		if !d.root {
			return refuse(wanted, errors.New("apt-get needs root")), nil
		}
		if err := d.install(ctx, wanted); err != nil {
			return refuse(wanted, err), nil
		}
		return installed(ctx, wanted)
	}
}

func (d *debian) install(ctx context.Context, wanted []service) (err error) {
	var packages []string
	for _, s := range wanted {
		packages = append(packages, s.debian)
	}
	fmt.Fprintf(d.progress, "testservices  apt-get install %s\n", strings.Join(packages, " "))

	restore, err := d.forbidAutostart()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()

	// Ctrl-C does not interrupt apt-get, because that could leave packages half installed.
	ctx = context.WithoutCancel(ctx)
	if err := d.apt(ctx, "update"); err != nil {
		return err
	}
	return d.apt(ctx, append([]string{"install", "-y", "--no-install-recommends"}, packages...)...)
}

func (d *debian) apt(ctx context.Context, args ...string) error {
	command := append([]string{"DEBIAN_FRONTEND=noninteractive", d.aptGet, "-q", "-o", "DPkg::Lock::Timeout=120"}, args...)
	if _, err := d.run(ctx, "env", command...); err != nil {
		return fmt.Errorf("apt-get %s: %w", args[0], err)
	}
	return nil
}

// forbidAutostart keeps packages from starting their services: the tests use
// private servers.
func (d *debian) forbidAutostart() (restore func() error, err error) {
	before, err := os.ReadFile(d.policy)
	if errors.Is(err, fs.ErrNotExist) {
		restore = func() error { return os.Remove(d.policy) }
	} else if err != nil {
		return nil, err
	} else {
		restore = func() error { return writeExecutable(d.policy, before) }
	}
	return restore, writeExecutable(d.policy, []byte("#!/bin/sh\nexit 101\n"))
}

func writeExecutable(path string, content []byte) error {
	return os.WriteFile(path, content, 0o755) //nolint:gosec // a program that others must be able to run
}
