package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// fixtures are filled stores, by what is in them. Measurements that need the same tasks
// get copies.
var fixtures = make(map[string]string)

// The stores with a million tasks.
const (
	oneHost   = "callbacks for one host"
	manyHosts = "callbacks for as many hosts"
	mixed     = "tasks in a queue, and callbacks that are due tomorrow"
)

// million is the number of tasks in these stores.
const million = 1_000_000

// fillFixtures fills the stores that the measurements need, two at a time: each needs
// one core.
func (b *bench) fillFixtures(chosen []measurement) error {
	n := max(template, b.some(million))
	fills := []struct {
		name  string
		hosts int
		put   putter
	}{
		{manyHosts, n, dueNow}, {oneHost, 1, dueNow}, {mixed, min(n, 1<<16), waiting},
	}
	took, err := timed(func() error {
		return parallel(2, len(fills), func(i int) error {
			f := fills[i]
			if !slices.ContainsFunc(chosen, func(m measurement) bool { return slices.Contains(m.fixtures, f.name) }) {
				return nil
			}
			dir, err := os.MkdirTemp("", "callback-bench-fixture-")
			if err != nil {
				return err
			}
			folder := filepath.Join(dir, "store")
			fixturesMu.Lock()
			fixtures[f.name] = folder
			fixturesMu.Unlock()
			return fillMany(folder, n, f.hosts, f.put)
		})
	})
	fmt.Printf("Filling the stores took %v.\n", took.Round(time.Second))
	return err
}

var fixturesMu sync.Mutex

// copyFixture makes folder a copy of a filled store.
func copyFixture(name, folder string) error { return os.CopyFS(folder, os.DirFS(fixtures[name])) }

// receiverInTemplate is the receiver of callbacks that are copied. Nothing listens there.
const receiverInTemplate = "127.1.0.0:1"

func dueNow(ctx context.Context, e engine.Engine, _ int) error {
	return addDelivery(ctx, e, "http://"+receiverInTemplate+"/hook", receiverInTemplate)
}

// waiting stores a task of a queue or, for every second i, a callback that is due
// tomorrow.
func waiting(ctx context.Context, e engine.Engine, i int) error {
	if i%2 == 0 {
		return queued(ctx, e)
	}
	rec := record("http://"+receiverInTemplate+"/hook", receiverInTemplate)
	rec.State, rec.NextAttemptAt = task.Delivering, rec.CreatedAt.Add(24*time.Hour)
	return e.Import(ctx, rec, nil, bytes.NewReader(body))
}

// ended stores a finished task.
func ended(ctx context.Context, e engine.Engine, _ int) error {
	rec := record("", "")
	rec.Callback, rec.Queue, rec.Request = nil, "q", &task.Request{Method: "POST", URI: "/"}
	lease, err := e.Claim(ctx, rec)
	if err != nil {
		return err
	}
	return lease.Settle(ctx, rec, bytes.NewReader(body))
}

// removeFixtures removes the filled stores.
func removeFixtures() {
	for _, folder := range fixtures {
		os.RemoveAll(filepath.Dir(folder))
	}
	clear(fixtures)
}

// putter stores task i.
type putter func(ctx context.Context, e engine.Engine, i int) error

// template is how many tasks the engine stores before they are copied.
const template = 1000

// fillMany stores n tasks, rounded to multiples of template. The engine stores the
// first ones with put. Statements in the database then copy them: the engine would take
// minutes for a million. With more than one host, the callbacks go to as many hosts:
// 127.1.0.0:1 and up.
func fillMany(folder string, n, hosts int, put putter) error {
	if err := fill(folder, min(n, template), put); err != nil {
		return err
	}
	// Opening the store again makes deliveries due that were in memory.
	if err := fill(folder, 0, nil); err != nil {
		return err
	}
	if n < 2*template && hosts == 1 {
		return nil
	}
	c, err := sqlite3.Open("file:" + filepath.Join(folder, "callback.db"))
	if err != nil {
		return err
	}
	defer c.Close()
	statements, err := copying(c, max(1, n/template), hosts)
	if err != nil {
		return err
	}
	for _, statement := range statements {
		if err := c.Exec(statement); err != nil {
			return fmt.Errorf("copying tasks: %s: %w", statement, err)
		}
	}
	return nil
}

// copying returns the statements that replace the tasks of a store by copies. The copies
// are older, and in the order of the lists.
func copying(c *sqlite3.Conn, copies, hosts int) ([]string, error) {
	columns, _, err := c.Prepare("SELECT name FROM pragma_table_info('task')")
	if err != nil {
		return nil, err
	}
	defer columns.Close()
	host := "host"
	if hosts > 1 {
		host = fmt.Sprintf(`CASE WHEN host IS NOT NULL THEN
			printf('127.%%d.%%d.%%d:1', 1 + (nr %% %[1]d >> 16), nr %% %[1]d >> 8 & 255, nr %% %[1]d & 255) END`, hosts)
	}
	values := map[string]string{
		"seq": "seq - earlier", "at": "at - earlier", "since": "since - earlier", "id": "new_id", "host": "new_host",
		"doc": "CAST(replace(replace(CAST(doc AS TEXT), id, new_id), coalesce(host, id), coalesce(new_host, id)) AS BLOB)",
	}
	var names, selected []string
	for columns.Step() {
		name := columns.ColumnText(0)
		names = append(names, name)
		if value, ok := values[name]; ok {
			name = value
		}
		selected = append(selected, name)
	}
	return []string{
		// Nothing reads the database meanwhile. A connection has at most 256 MiB.
		"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY",
		"CREATE TEMP TABLE old AS SELECT row_number() OVER (ORDER BY seq) - 1 AS i, * FROM task",
		"CREATE TEMP TABLE old_body AS SELECT * FROM body",
		"DELETE FROM body; DELETE FROM task",
		fmt.Sprintf(`CREATE TEMP TABLE copy AS WITH RECURSIVE n(k) AS (SELECT 0 UNION ALL SELECT k + 1 FROM n WHERE k < %d)
			SELECT k, k * (SELECT count(*) FROM old) AS first, (%d - k) * (SELECT max(seq) - min(seq) + 1 FROM old) AS earlier FROM n`,
			copies-1, copies-1),
		fmt.Sprintf(`INSERT INTO task(%s) SELECT %s FROM (
			SELECT *, %s AS new_host, printf('%%08x-%%04x-7000-8000-%%012x', ms >> 16, ms & 65535, nr) AS new_id FROM (
			SELECT old.*, earlier, first + i AS nr, (seq - earlier) / 1000000 AS ms FROM copy CROSS JOIN old))`,
			strings.Join(names, ", "), strings.Join(selected, ", "), host),
		"INSERT INTO body SELECT id - 2 * earlier, file, sum, bytes FROM copy CROSS JOIN old_body",
		fmt.Sprintf("UPDATE tally SET tasks = tasks * %[1]d; UPDATE queue SET queued = queued * %[1]d; UPDATE domain SET bytes = bytes * %[1]d", copies),
		"DELETE FROM host; INSERT INTO host(name, waiting) SELECT host, count(*) FROM task WHERE state = 2 GROUP BY host",
		"PRAGMA journal_mode = WAL",
	}, nil
}
