package callback

import (
	"fmt"
	"strconv"
	"strings"
)

// cronField is one of the five fields of a cron expression, as the engine takes
// them: it is checked here because the engine hears of it only when it starts.
type cronField struct {
	name     string
	min, max int
	names    string // of the values from min on, three letters each
}

var cronFields = []cronField{
	{"minute", 0, 59, ""},
	{"hour", 0, 23, ""},
	{"day of month", 1, 31, ""},
	{"month", 1, 12, "janfebmaraprmayjunjulaugsepoctnovdec"},
	{"day of week", 0, 6, "sunmontuewedthufrisat"},
}

// checkCron says what is wrong with an expression of five fields.
func checkCron(fields []string) error {
	for i, field := range fields {
		for part := range strings.SplitSeq(field, ",") {
			if !cronFields[i].takes(part) {
				return fmt.Errorf("%q is not a %s (%d-%d)", part, cronFields[i].name, cronFields[i].min, cronFields[i].max)
			}
		}
	}
	return nil
}

// takes says whether part is a star, a value or a range, each with a step or
// without.
func (f *cronField) takes(part string) bool {
	span, step, hasStep := strings.Cut(part, "/")
	if hasStep {
		if n, err := strconv.Atoi(step); err != nil || n < 1 {
			return false
		}
	}
	if span == "*" || span == "?" {
		return true
	}
	first, last, isRange := strings.Cut(span, "-")
	low, ok := f.value(first)
	if !ok || !isRange {
		return ok
	}
	high, ok := f.value(last)
	return ok && low <= high
}

func (f *cronField) value(s string) (int, bool) {
	if i := strings.Index(f.names, strings.ToLower(s)); len(s) == 3 && i >= 0 && i%3 == 0 {
		return f.min + i/3, true
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return int(n), err == nil && int(n) >= f.min && int(n) <= f.max
}
