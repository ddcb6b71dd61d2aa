package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// stocks are filled stores, by what is in them. Filling one with a million tasks takes
// longer than most measurements, so those that need the same tasks get copies.
var stocks = make(map[string]string)

// stocked makes folder a copy of the store that fill fills. The first call with a name
// calls fill.
func stocked(name, folder string, fill func(folder string) error) error {
	from, ok := stocks[name]
	if !ok {
		dir, err := os.MkdirTemp("", "callback-bench-stock-")
		if err != nil {
			return err
		}
		from = filepath.Join(dir, "store")
		if err := fill(from); err != nil {
			return fmt.Errorf("filling a store with %s: %w", name, err)
		}
		stocks[name] = from
	}
	return os.CopyFS(folder, os.DirFS(from))
}

// removeStocks removes the filled stores.
func removeStocks() {
	for _, folder := range stocks {
		os.RemoveAll(filepath.Dir(folder))
	}
	clear(stocks)
}
