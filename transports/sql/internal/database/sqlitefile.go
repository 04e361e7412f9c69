package database

import (
	"errors"
	"fmt"
	"os"
)

// A sqliteFile is the file that a SQLite database was opened from. If it is deleted or replaced while it is open, writes
// still succeed, but they are lost when the last connection closes.
type sqliteFile struct {
	path string
	info os.FileInfo
}

var errFileGone = errors.New("was deleted or replaced while it was open, so writes to it are lost; restart the service")

// gone returns an error if the file was deleted or replaced. A nil file is never gone.
func (f *sqliteFile) gone() error {
	if f == nil {
		return nil
	}
	info, err := os.Stat(f.path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(info, f.info) {
		return fmt.Errorf("the file %s %w", f.path, errFileGone)
	}
	return nil // other errors don't show whether the file exists
}
