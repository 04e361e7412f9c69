package cli

import (
	"encoding/json"
	"errors"
	"io"
	"os"
)

// readJSON reads the JSON values of a file, or for - of the standard input. what names one of them in errors.
func readJSON[T any](e *Env, name, what string) (all []T, err error) {
	in := e.Stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, &UsageError{err}
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	for decoder := json.NewDecoder(in); ; {
		var next T
		err := decoder.Decode(&next)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, usage("%s: %s %d: %w", name, what, len(all)+1, err)
		}
		all = append(all, next)
	}
}

// value returns a flag's text, or for @name the file's contents.
func (e *Env) value(text string) ([]byte, error) {
	if len(text) == 0 || text[0] != '@' {
		return []byte(text), nil
	}
	if text == "@-" {
		return io.ReadAll(e.Stdin)
	}
	data, err := os.ReadFile(text[1:])
	if err != nil {
		return nil, &UsageError{err}
	}
	return data, nil
}
