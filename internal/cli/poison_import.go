package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type poisonImport struct {
	connect `embed:""`

	Group string `placeholder:"GROUP" help:"Write into this group's queue instead of the one in the records."`
	File  string `arg:"" help:"The output of export; - is the standard input."`
}

// importAtOnce is how many messages one call writes.
const importAtOnce = 500

// Run writes the records into poison queues. It skips those that exist already, so it may be run again
// after a failure.
func (c *poisonImport) Run(ctx context.Context, e *Env) error {
	records, err := readJSON[admin.Record](e, c.File, "record")
	if err != nil {
		return err
	}
	byGroup := make(map[string][]driver.PoisonedMessage)
	for i, r := range records {
		m, err := r.Message()
		if err != nil {
			return usage("%s: record %d: %w", c.File, i+1, err)
		}
		group := cmp.Or(c.Group, r.Group)
		if group == "" {
			return usage("%s: record %d has no group; give one by --group", c.File, i+1)
		}
		m.ID = ""
		byGroup[group] = append(byGroup[group], m)
	}
	return c.with(ctx, e, func(s *session) error {
		imported, there := 0, 0
		for group, msgs := range byGroup {
			queues, err := named(group).queues(ctx, s)
			if err != nil {
				return err
			}
			fresh, err := without(ctx, queues[0].queue, msgs)
			if err != nil {
				return err
			}
			there += len(msgs) - len(fresh)
			for some := range slices.Chunk(fresh, importAtOnce) {
				if err := queues[0].queue.Put(ctx, some...); err != nil {
					return fmt.Errorf("imported %s; run it again to go on: %w", messages(imported), err)
				}
				imported += len(some)
			}
		}
		text := ""
		if there > 0 {
			text = fmt.Sprintf("; %d were there already", there)
		}
		_, err := fmt.Fprintf(s.Stdout, "imported %s%s\n", messages(imported), text)
		return err
	})
}

// sameness identifies the poisoning of a message: equal for two records of the same one.
type sameness struct{ source, id, at string }

func samenessOf(m driver.PoisonedMessage) sameness {
	h := m.Message.Metadata
	return sameness{h[driver.HeaderSource], driver.MessageID(m.Message), h[driver.HeaderFaultAt]}
}

// without returns the messages that are not in the queue.
func without(ctx context.Context, queue driver.PoisonQueue, msgs []driver.PoisonedMessage) ([]driver.PoisonedMessage, error) {
	there := make(map[sameness]bool)
	err := admin.Each(ctx, queue, "", func(m driver.PoisonedMessage) error {
		there[samenessOf(m)] = true
		return nil
	})
	return slices.DeleteFunc(msgs, func(m driver.PoisonedMessage) bool { return there[samenessOf(m)] }), err
}
