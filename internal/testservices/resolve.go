package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// answer is the result of a step for one service: its URL, or why the step can't provide it.
type answer struct {
	service service
	url     string
	version string
	how     string
	refusal error // set when the next step should try
}

// step is one way to find or start services. It returns one answer for each wanted service, in their order. An error ends the
// search.
type step func(ctx context.Context, wanted []service) ([]answer, error)

// answerWithin is how long a login to a running server may take.
const answerWithin = 10 * time.Second

// resolve takes the steps in order until every service is found. With an error it also returns the services that were found, so
// that the caller can report them.
func resolve(ctx context.Context, wanted []service, steps []step, tell func(answer)) ([]answer, error) {
	var found []answer
	refusals := map[string][]error{}
	for _, take := range steps {
		answers, err := take(ctx, wanted)
		wanted = nil
		for _, a := range answers {
			if a.refusal != nil {
				refusals[a.service.name] = append(refusals[a.service.name], a.refusal)
				wanted = append(wanted, a.service)
				continue
			}
			tell(a)
			found = append(found, a)
		}
		if err := errors.Join(context.Cause(ctx), err); err != nil {
			return found, err
		}
		if len(wanted) == 0 {
			return found, nil
		}
	}
	return found, &missingError{services: wanted, refusals: refusals}
}

// each calls ask for all services concurrently. A service whose call fails has no answer. It returns the joined errors.
func each(wanted []service, ask func(service) (answer, error)) ([]answer, error) {
	answers, failures := make([]answer, len(wanted)), make([]error, len(wanted))
	var group sync.WaitGroup
	for i, s := range wanted {
		group.Go(func() { answers[i], failures[i] = ask(s) })
	}
	group.Wait()

	var answered []answer
	for i := range wanted {
		if failures[i] == nil {
			answers[i].service = wanted[i]
			answered = append(answered, answers[i])
		}
	}
	return answered, errors.Join(failures...)
}

// refuse returns the same refusal for all services.
func refuse(wanted []service, reason error) []answer {
	answers := make([]answer, len(wanted))
	for i, s := range wanted {
		answers[i] = answer{service: s, refusal: reason}
	}
	return answers
}

// fromEnvironment implements step 1.
func fromEnvironment(getenv func(string) string) step {
	return func(ctx context.Context, wanted []service) ([]answer, error) {
		return each(wanted, func(s service) (answer, error) {
			address := getenv(s.variable)
			if address == "" {
				return answer{refusal: fmt.Errorf("%s is not set", s.variable)}, nil
			}
			if _, err := url.Parse(address); err != nil {
				// Neither the value nor err is shown: both may hold a password.
				return answer{}, fmt.Errorf("testservices: %s is not a URL; it should look like %s", s.variable, s.standard[0])
			}
			version, err := greet(ctx, s, address)
			if err != nil {
				return answer{}, fmt.Errorf("testservices: %s says %s, but no %s answers there: %w\n"+
					"  start that server, or unset %s to let testservices find or start one",
					s.variable, mask(address), s.name, err, s.variable)
			}
			return answer{url: address, version: version, how: "environment"}, nil
		})
	}
}

// fromStandardPort implements step 2.
func fromStandardPort(ctx context.Context, wanted []service) ([]answer, error) {
	return each(wanted, func(s service) (answer, error) {
		var refusal error
		for _, address := range s.standard {
			version, err := greet(ctx, s, address)
			if err == nil && s.complete != nil {
				err = s.complete(ctx, address)
			}
			if err == nil {
				return answer{url: address, version: version, how: "standard port"}, nil
			}
			refusal = fmt.Errorf("standard port: %w", err)
		}
		return answer{refusal: refusal}, nil
	})
}

func greet(ctx context.Context, s service, address string) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return s.handshake(ctx, address)
}

// missingError is the error of services that are missing: it names them, what was tried, and the fix.
type missingError struct {
	services []service
	refusals map[string][]error
}

func (e *missingError) Error() string {
	var text strings.Builder
	var packages, variables []string
	fmt.Fprintf(&text, "testservices: no %s here", strings.ReplaceAll(joinNames(e.services), ",", ", no "))
	for _, s := range e.services {
		packages, variables = append(packages, s.debian), append(variables, s.variable+"="+s.standard[0])
		for _, refusal := range e.refusals[s.name] {
			fmt.Fprintf(&text, "\n  %-9s %v", s.name, oneLine(refusal.Error()))
		}
	}
	fmt.Fprintf(&text, "\ncures, any one:\n"+
		"  name a running server:       export %s\n"+
		"  start a container engine:    testservices then uses docker compose or podman compose\n"+
		"  install them (Debian):       apt-get install --no-install-recommends %s\n"+
		"  test without them:           go test ./...",
		strings.Join(variables, " "), strings.Join(packages, " "))
	return text.String()
}

func oneLine(s string) string {
	return strings.Join(strings.Fields(s), " ")
}

// poll repeats try until it returns nil or ctx ends, and then returns the last error.
func poll(ctx context.Context, try func(ctx context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last try: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// environ returns the command's environment. It requires what was found: a test that is skipped nonetheless is a mistake.
func environ(found []answer) []string {
	env := os.Environ()
	var required []service
	for _, a := range found {
		env = append(env, a.service.variable+"="+a.url)
		required = append(required, a.service)
	}
	return append(env, "LEAT_TEST_REQUIRE="+joinNames(required))
}
