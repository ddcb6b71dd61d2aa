package callback

import (
	"context"
	"sync"
)

// storeSecret remembers the secret of a store.
type storeSecret struct {
	mu    sync.Mutex
	value []byte // nil until it is asked for
}

// secret returns random bytes that the gateways of a store share and nobody else
// knows.
func (a *App) secret(ctx context.Context) ([]byte, error) {
	s, leave, err := a.look()
	if err != nil {
		return nil, err
	}
	defer leave()
	s.secret.mu.Lock()
	defer s.secret.mu.Unlock()
	if s.secret.value == nil {
		if s.secret.value, err = s.Secret(ctx); err != nil {
			return nil, err
		}
	}
	return s.secret.value, nil
}
