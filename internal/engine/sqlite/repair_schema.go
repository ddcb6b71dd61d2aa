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

// restoreSchema copies the pages that describe the tables from a new store. These pages
// are the same in all stores of a version, and no other page can be read without them.
func restoreSchema(ctx context.Context, file string) error {
	from, err := open(ctx, Config{Folder: filepath.Join(filepath.Dir(file), "empty")})
	if err != nil {
		return err
	}
	roots := map[int64]bool{}
	err = from.read(ctx, func(c *conn) error {
		c.query("SELECT rootpage FROM sqlite_schema", nil, func(stmt *sqlite3.Stmt) bool {
			roots[stmt.ColumnInt64(0)] = true
			return true
		})
		return nil
	})
	if err = errors.Join(err, from.Close(ctx)); err != nil {
		return err
	}
	pristine, err := os.ReadFile(from.file)
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
	// Only the size differs in the first page. The list of free pages is not restored.
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

// checksum writes the checksum of a page at its end, as SQLite's cksumvfs does.
func checksum(page []byte) {
	end := len(page) - 8
	a, b := sumWords(binary.LittleEndian, 0, 0, page[:end])
	binary.LittleEndian.PutUint32(page[end:], a)
	binary.LittleEndian.PutUint32(page[end+4:], b)
}
