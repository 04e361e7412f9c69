package sql

import (
	"errors"
	"fmt"
	"os"
)

// sqliteFile is the file that a SQLite database was opened from. An open file that somebody deletes or
// replaces goes on to take writes until its last connection closes; then they are gone.
type sqliteFile struct {
	path string
	info os.FileInfo
}

var errFileGone = errors.New("was deleted or replaced while it was open, and what is written into it is lost; restart the service")

// gone returns an error if the file is no longer at its place.
func (f *sqliteFile) gone() error {
	if f == nil {
		return nil
	}
	info, err := os.Stat(f.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, f.info) {
		return fmt.Errorf("the file %s %w", f.path, errFileGone)
	}
	return nil // another error says nothing about the file
}
