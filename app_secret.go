package callback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// secretSize is the length of a store's secret in bytes.
const secretSize = 32

// processSecret is the secret of gateways on a cluster. Each has its own, so that
// they do not know each other's callbacks.
var processSecret = sync.OnceValue(func() []byte {
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // it never fails
	return secret
})

// secret returns random bytes that the gateways of a store share and nobody else
// knows. It makes them when they are first asked for.
func (a *App) secret(_ context.Context) ([]byte, error) {
	if a.NATS != nil {
		return processSecret(), nil
	}
	a.secrets.Lock()
	defer a.secrets.Unlock()
	if a.storeSecret != nil {
		return a.storeSecret, nil
	}
	secret, err := readSecret(filepath.Join(a.Store, "secret"))
	if err != nil {
		return nil, fmt.Errorf("reading the store's secret: %w", err)
	}
	a.storeSecret = secret
	return secret, nil
}

// readSecret reads a secret's file, or makes it.
func readSecret(file string) ([]byte, error) {
	secret, err := os.ReadFile(file)
	if err == nil && len(secret) == secretSize {
		return secret, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	secret = make([]byte, secretSize)
	_, _ = rand.Read(secret) // it never fails
	// A file of its own first: one that was cut short by a crash is made anew.
	part := file + ".new"
	if err := os.WriteFile(part, secret, 0o600); err != nil {
		return nil, err
	}
	return secret, os.Rename(part, file)
}
