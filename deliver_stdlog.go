package callback

import (
	"bytes"
	"io"
	"log"
	"sync"
)

// hushStdLog keeps what receivers send out of the log. net/http quotes, through
// the standard library's logger and without a way to turn it off, what comes on
// a connection that it keeps for reuse: a receiver that echoes would have the
// callback's body there, and one that floods whatever it likes. Caddy sets that
// logger up anew with each configuration, and takes it down with the one before;
// so this is called at every attempt.
func hushStdLog() {
	if _, done := log.Writer().(hushedLog); done {
		return
	}
	hushing.Lock()
	defer hushing.Unlock()
	if w := log.Writer(); w != nil {
		if _, done := w.(hushedLog); !done {
			log.SetOutput(hushedLog{w})
		}
	}
}

var hushing sync.Mutex

// hushedLog cuts the quotation off the line.
type hushedLog struct{ io.Writer }

var unsolicited = []byte("Unsolicited response received on idle HTTP channel")

func (h hushedLog) Write(line []byte) (int, error) {
	before, _, found := bytes.Cut(line, unsolicited)
	if !found {
		return h.Writer.Write(line)
	}
	cut := append(bytes.Clone(before), unsolicited...)
	if _, err := h.Writer.Write(append(cut, '\n')); err != nil {
		return 0, err
	}
	return len(line), nil
}
