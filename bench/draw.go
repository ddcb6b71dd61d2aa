package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The chart's frame, in pixels.
const (
	width, height            = 720, 360
	left, right, top, bottom = 80, 24, 48, 56
)

// draw returns an SVG of a curve with a logarithmic x axis and a y axis that begins at
// zero. It is readable on light and dark backgrounds.
func draw(title, x, y string, points []point) []byte {
	last, highest := 1.0, 0.0
	for _, p := range points {
		last, highest = max(last, math.Log10(p.x)), max(highest, p.y)
	}
	step := niceStep(highest)
	highest = math.Ceil(highest/step) * step
	px := func(v float64) float64 { return left + math.Log10(v)/last*(width-left-right) }
	py := func(v float64) float64 { return height - bottom - v/highest*(height-top-bottom) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" font-family="sans-serif" font-size="13" fill="#777">`+"\n", width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", html.EscapeString(title))
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="16">%s</text>`+"\n", left, html.EscapeString(title))
	for v := 0.0; v <= highest; v += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#888" stroke-opacity=".3"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, py(v), width-right, left-8, py(v)+4, short(v))
	}
	for decade := 0.0; decade <= last; decade++ {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", px(math.Pow(10, decade)), height-bottom+20, short(math.Pow(10, decade)))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", width-right, height-14, html.EscapeString(x))
	fmt.Fprintf(&b, `<text x="%d" y="40">%s</text>`+"\n", left, html.EscapeString(y))
	var path []string
	for _, p := range points {
		path = append(path, fmt.Sprintf("%.1f %.1f", px(p.x), py(p.y)))
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="#2b7de9"><title>%s: %s</title></circle>`+"\n", px(p.x), py(p.y), short(p.x), number(p.y))
	}
	fmt.Fprintf(&b, `<path d="M%s" fill="none" stroke="#2b7de9" stroke-width="2"/>`+"\n</svg>\n", strings.Join(path, "L"))
	return []byte(b.String())
}

// niceStep returns a step that divides an axis into about five parts.
func niceStep(highest float64) float64 {
	if highest <= 0 {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	for _, part := range []float64{0.1, 0.2, 0.5, 1} {
		if highest/(step*part) <= 6 {
			return step * part
		}
	}
	return step * 2
}

// short formats 1,000,000 as 1M.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	default:
		return fmt.Sprintf("%g", v)
	}
}
