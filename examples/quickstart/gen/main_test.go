package main

import (
	"bytes"
	"os"
	"testing"
)

func TestEvents_committedFileIsCurrent(t *testing.T) {
	committed, err := os.ReadFile("../" + file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, Events()) {
		t.Errorf("%s is not what the generator writes; run: go generate ./examples/quickstart", file)
	}
}
