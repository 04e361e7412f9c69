package bustest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// failures has the errors with which the next tries fail, by handler.
type failures struct {
	mu   sync.Mutex
	errs map[string][]error
}

func (f *failures) add(handler string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errs == nil {
		f.errs = make(map[string][]error)
	}
	f.errs[handler] = append(f.errs[handler], err)
}

func (f *failures) next(handler string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue := f.errs[handler]
	if len(queue) == 0 {
		return nil
	}
	f.errs[handler] = queue[1:]
	return queue[0]
}

// left returns a text that counts the failures that have not happened, "" if there is none.
func (f *failures) left() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for handler, queue := range f.errs {
		if len(queue) > 0 {
			names = append(names, fmt.Sprintf("%d of %s", len(queue), handler))
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
