package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

//go:embed compose.yaml
var composeFile string

// runner runs a program to its end and returns its standard output. The error contains its standard error.
type runner func(ctx context.Context, program string, args ...string) (output string, err error)

func runProgram(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // programs and arguments come from this package
	group(cmd)
	cmd.WaitDelay = stopWithin
	output, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, oneLine(string(failed.Stderr)))
	}
	return string(output), err
}

// containers are the services that one run has in a container engine.
type containers struct {
	run     runner
	project string // unique for each run

	compose []string // the engine's compose command, once containers were started
	file    string
}

// fromContainers implements step 3. An error in it is a reason to continue with the next step: many machines have no engine or no images.
func (c *containers) fromContainers(ctx context.Context, wanted []service) ([]answer, error) {
	compose, err := c.engine(ctx)
	if err != nil {
		return refuse(wanted, err), nil
	}
	if err := c.up(ctx, compose, wanted); err != nil {
		return refuse(wanted, fmt.Errorf("%s: %w", compose[0], err)), nil
	}
	return each(wanted, func(s service) (answer, error) {
		url, version, err := c.find(ctx, s)
		return answer{url: url, version: version, how: compose[0], refusal: err}, nil
	})
}

// engine returns the first container engine whose daemon runs and has compose.
func (c *containers) engine(ctx context.Context) (compose []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	for _, engine := range []string{"docker", "podman"} {
		if _, failure := c.run(ctx, engine, "info"); failure != nil {
			err = errors.Join(err, fmt.Errorf("%s info: %w", engine, failure))
		} else if _, failure := c.run(ctx, engine, "compose", "version"); failure != nil {
			err = errors.Join(err, fmt.Errorf("%s compose: %w", engine, failure))
		} else {
			return []string{engine, "compose"}, nil
		}
	}
	return nil, err
}

func (c *containers) up(ctx context.Context, compose []string, wanted []service) error {
	file, err := os.CreateTemp("", "leat-compose-*.yaml")
	if err != nil {
		return err
	}
	defer file.Close()
	c.file = file.Name()
	if _, err := file.WriteString(composeFile); err != nil {
		return err
	}
	c.compose = append(compose, "-p", c.project, "-f", c.file)
	_, err = c.command(ctx, append([]string{"up", "-d", "--wait"}, strings.Split(joinNames(wanted), ",")...)...)
	return err
}

// find returns the URL of a container's loopback port, after it has logged in there.
func (c *containers) find(ctx context.Context, s service) (url, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	address, err := c.command(ctx, "port", s.name, s.standardPort())
	if err != nil {
		return "", "", err
	}
	url = s.at(strings.TrimSpace(address))
	if s.api != "" {
		if address, err = c.command(ctx, "port", s.name, s.api); err != nil {
			return "", "", err
		}
		url += "?management=http://" + strings.TrimSpace(address)
	}
	err = poll(ctx, func(ctx context.Context) error {
		version, err = greet(ctx, s, url)
		return err
	})
	return url, version, err
}

func (c *containers) command(ctx context.Context, args ...string) (string, error) {
	args = append(c.compose[1:len(c.compose):len(c.compose)], args...)
	return c.run(ctx, c.compose[0], args...)
}

func (c *containers) close() error {
	if c.compose == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := c.command(ctx, "down", "--volumes", "--timeout", "0")
	return errors.Join(err, os.Remove(c.file))
}

// stopCommands returns the commands that stop containers that are left up.
func (c *containers) stopCommands() []string {
	if c.compose == nil {
		return nil
	}
	return []string{strings.Join(c.compose, " ") + " down --volumes; rm " + c.file}
}
