package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// findProgram searches Debian's directories of server programs before PATH:
// the rabbitmq-server in Debian's PATH is a wrapper that writes to the system
// log of the installed broker, and the PostgreSQL in PATH may be clients only.
func findProgram(alternatives string) (path string, err error) {
	directories := append([]string{"/usr/lib/rabbitmq/bin"}, newestFirst("/usr/lib/postgresql/*/bin")...)
	directories = append(directories, filepath.SplitList(searchPath())...)
	for program := range strings.SplitSeq(alternatives, "|") {
		for _, directory := range directories {
			if path, err := exec.LookPath(filepath.Join(directory, program)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s is not installed", strings.ReplaceAll(alternatives, "|", " or "))
}

// searchPath returns PATH and the directories of servers, which users often lack.
func searchPath() string {
	return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
}

// newestFirst sorts versioned directories: 17, 15, 9.6.
func newestFirst(pattern string) []string {
	directories, _ := filepath.Glob(pattern) // fails on a malformed pattern only
	version := func(directory string) float64 {
		number, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(directory)), 64)
		return number
	}
	slices.SortFunc(directories, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
	return directories
}
