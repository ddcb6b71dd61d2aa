package nats

// cacheLimit bounds what is cached, in bytes.
const cacheLimit = 32 << 20

// remember caches a message that this gateway stored, if it is the one that is likely
// to go on with the task.
func (x *index) remember(e *entry, stored *message) {
	if old := x.cache[e.id]; old != nil {
		delete(x.cache, e.id)
		x.cacheSize -= old.size()
	}
	if stored == nil || x.where(e) == nil || x.cacheSize+stored.size() > cacheLimit {
		return
	}
	c := *stored
	c.rec = cloneRecord(stored.rec)
	x.cache[e.id] = &c
	x.cacheSize += c.size()
}

// size is about what a message takes of memory.
func (m *message) size() int { return len(m.body) + 4<<10 }

// cached returns a copy of a task's step if it is cached.
func (x *index) cached(id string, seq uint64) *message {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.cache[id]
	if m == nil || m.seq != seq {
		return nil
	}
	c := *m
	c.rec = cloneRecord(m.rec)
	c.rec.State, c.rec.Version = m.meta.State, m.seq
	return &c
}
