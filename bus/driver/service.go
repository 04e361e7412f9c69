package driver

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// A GroupFinder is a [Transport] that reports whether groups exist. It is optional; every durable transport of leat is one.
type GroupFinder interface {
	// FindGroup returns the first of these groups that exists in the message system, "" if none of them does. It creates
	// nothing. It blocks until the message system answers or ctx is done, and may be called concurrently.
	FindGroup(ctx context.Context, names ...string) (string, error)
}

// DefaultService returns the name of a service that sets none: the last element of the main module's path, without a
// major version, plus a hyphen and the last element of the main package's path if that is another one. The binaries of
// github.com/acme/orders/cmd/orders and …/cmd/worker are orders and orders-worker.
func DefaultService() string {
	name, program := defaultService()
	if program != "" {
		name += "-" + program
	}
	return name
}

// defaultService returns the two parts of the default name.
func defaultService() (module, program string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return asName(executable()), ""
	}
	return serviceOf(info.Main.Path, info.Path)
}

func serviceOf(modulePath, packagePath string) (module, program string) {
	module = lastElement(modulePath)
	if module == "" {
		return asName(executable()), ""
	}
	switch program = lastElement(packagePath); {
	case program == module, packagePath == modulePath, !strings.HasPrefix(packagePath, modulePath+"/"), strings.HasSuffix(program, ".test"):
		return asName(module), "" // the package of "go run file.go" is in no module
	}
	return asName(module), asName(program)
}

func executable() string { return strings.TrimSuffix(filepath.Base(os.Args[0]), ".test") }

// lastElement returns the last element of an import path that is not a major version, "" if there is none.
func lastElement(importPath string) string {
	base := path.Base(importPath)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		base = path.Base(path.Dir(importPath))
	}
	if base == "." || base == "/" {
		return ""
	}
	return base
}

// asName replaces characters that a name can't have by hyphens.
func asName(text string) string {
	return strings.Map(func(r rune) rune {
		if ValidateName("a"+string(r), 8) != nil {
			return '-'
		}
		return r
	}, strings.TrimLeft(text, "._-"))
}

// CheckDefaultService returns an error if this program's default service name has the name of its main package, and a message
// system has one of the groups, such as "mail", under the module's name alone. That is the default name of a main package at the
// module's root, and was this program's in earlier versions of leat or before its package was moved. Then the messages of the group
// would not be handled any more. It is for a service with the default name. It blocks as FindGroup does.
func CheckDefaultService(ctx context.Context, finder GroupFinder, groups ...string) error {
	former, program := defaultService()
	if program == "" {
		return nil
	}
	return checkDefaultService(ctx, finder, former, former+"-"+program, groups...)
}

func checkDefaultService(ctx context.Context, finder GroupFinder, former, service string, groups ...string) error {
	names := make([]string, len(groups))
	for i, group := range groups {
		names[i] = former + "." + group
	}
	found, err := finder.FindGroup(ctx, names...)
	switch {
	case err != nil:
		return fmt.Errorf("look for groups of the service %q: %w", former, err)
	case found == "":
		return nil
	}
	return fmt.Errorf("this program's default service name is %q, and there is a group %q, "+
		"which belongs to another program of this module, or to this one if it had the module's name before: set LEAT_SERVICE or Config.Service "+
		"to %q if the group is another program's, or to %q if it is this one's",
		service, found, service, former)
}
