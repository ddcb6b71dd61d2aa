package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/ncruces/go-sqlite3"
)

// restoreSchema writes the pages that describe the tables anew. They are the same
// in all stores of a version, and none of the others can be read without them.
func restoreSchema(ctx context.Context, file string) error {
	folder := filepath.Join(filepath.Dir(file), "schema")
	s, err := open(ctx, Config{Folder: folder, holder: 1})
	if err != nil {
		return err
	}
	roots := map[int64]bool{}
	err = s.read(ctx, func(c *conn) error {
		return c.query("SELECT rootpage FROM sqlite_schema", nil, func(stmt *sqlite3.Stmt) bool {
			roots[stmt.ColumnInt64(0)] = true
			return true
		})
	})
	if err = errors.Join(err, s.Close(ctx)); err != nil {
		return err
	}
	pristine, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Only the size differs on the first page. Pages that were free are not looked for.
	binary.BigEndian.PutUint32(pristine[28:], uint32(info.Size()/pageSize))
	checksum(pristine[:pageSize])
	last := slices.Max(slices.Collect(maps.Keys(roots)))
	for page := int64(1); page <= last; page++ {
		if !roots[page] {
			if _, err := f.WriteAt(pristine[(page-1)*pageSize:page*pageSize], (page-1)*pageSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// checksum writes the checksum of a page to its end, as SQLite's cksumvfs does.
func checksum(page []byte) {
	end := len(page) - 8
	a, b := sumWords(binary.LittleEndian, 0, 0, page[:end])
	binary.LittleEndian.PutUint32(page[end:], a)
	binary.LittleEndian.PutUint32(page[end+4:], b)
}
