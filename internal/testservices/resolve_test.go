package main

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResolve_usesTheFirstStep(t *testing.T) {
	wanted := []service{fake("a"), fake("b"), fake("c")}
	var asked, told []string
	having := func(number, name string) step {
		return func(_ context.Context, wanted []service) ([]answer, error) {
			asked = append(asked, number+":"+joinNames(wanted))
			return each(wanted, func(s service) (answer, error) {
				if s.name != name {
					return answer{refusal: errors.New("not in " + number)}, nil
				}
				return answer{url: number + "://" + name}, nil
			})
		}
	}

	found, err := resolve(t.Context(), wanted,
		[]step{having("1", "b"), having("2", "none"), having("3", "a"), having("4", "c"), having("5", "c")},
		func(a answer) { told = append(told, a.url) })

	require.NoError(t, err)
	require.Len(t, found, 3)
	require.Equal(t, []string{"1:a,b,c", "2:a,c", "3:a,c", "4:c"}, asked, "the fifth step has nothing left to do")
	require.Equal(t, []string{"1://b", "3://a", "4://c"}, told)
}

func TestResolve_missingHasEveryReason(t *testing.T) {
	no := func(why string) step {
		return func(_ context.Context, wanted []service) ([]answer, error) {
			return refuse(wanted, errors.New(why)), nil
		}
	}
	_, err := resolve(t.Context(), []service{fake("a"), fake("b")}, []step{no("not\nhere"), no("not there")}, nil)

	for _, part := range []string{
		"no a, no b here", "a         not here", "b         not there",
		"LEAT_TEST_A_URL=a://127.0.0.1:4711/", "--no-install-recommends a-server b-server",
	} {
		require.ErrorContains(t, err, part)
	}
}

func TestResolve_failedStepEndsTheSearch(t *testing.T) {
	failed := errors.New("failed")
	half := func(_ context.Context, wanted []service) ([]answer, error) {
		return []answer{{service: wanted[0]}}, failed
	}
	never := func(context.Context, []service) ([]answer, error) {
		t.Error("asked after a failure")
		return nil, nil
	}
	found, err := resolve(t.Context(), []service{fake("a"), fake("b")}, []step{half, never}, func(answer) {})

	require.ErrorIs(t, err, failed)
	require.Len(t, found, 1)
}

func TestResolve_setVariableIsRequired(t *testing.T) {
	silent := fake("a")
	silent.handshake = func(context.Context, string) (string, error) { return "", errors.New("connection refused") }
	set := func(value string) step { return fromEnvironment(func(string) string { return value }) }

	_, err := set("a://me:secret@nowhere")(t.Context(), []service{silent})
	require.EqualError(t, err, "testservices: LEAT_TEST_A_URL says a://me:xxxxx@nowhere, but no a answers there: connection refused\n"+
		"  start that server, or unset LEAT_TEST_A_URL to let testservices find or start one")

	_, err = set("a://me:sec%ret@nowhere")(t.Context(), []service{silent})
	require.EqualError(t, err, "testservices: LEAT_TEST_A_URL is not a URL; it should look like a://127.0.0.1:4711/")

	answers, err := set("")(t.Context(), []service{silent})
	require.NoError(t, err)
	require.ErrorContains(t, answers[0].refusal, "LEAT_TEST_A_URL is not set")
}

func TestResolve_triesStandardURLsInOrder(t *testing.T) {
	s := fake("a")
	s.standard = []string{"a://1", "a://2", "a://3"}
	s.handshake = func(_ context.Context, url string) (string, error) {
		if url == "a://1" {
			return "", errors.New("no such database")
		}
		return "1.0", nil
	}
	answers, err := fromStandardPort(t.Context(), []service{s})

	require.NoError(t, err)
	require.Equal(t, "a://2", answers[0].url)
	require.Equal(t, "1.0", answers[0].version)
}

func TestServices_chosenByName(t *testing.T) {
	all, err := choose(services(), "")
	require.NoError(t, err)
	require.Equal(t, "redis,postgres,mariadb,rabbitmq", joinNames(all))

	two, err := choose(services(), "rabbitmq, redis")
	require.NoError(t, err)
	require.Equal(t, "rabbitmq,redis", joinNames(two))

	_, err = choose(services(), "reddis")
	require.EqualError(t, err, `testservices: -services: no service "reddis"; known: redis,postgres,mariadb,rabbitmq`)
}
