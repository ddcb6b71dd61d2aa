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

// colors are readable on light and dark backgrounds.
var colors = []string{"#2b7de9", "#e07b00"}

// draw returns an SVG of a curve with a logarithmic x axis and a y axis that begins at
// zero.
func draw(c curve, lines []line) []byte {
	first, last, highest := math.Inf(1), math.Inf(-1), 0.0
	for _, l := range lines {
		for _, p := range l.points {
			first, last, highest = min(first, math.Log10(p.x)), max(last, math.Log10(p.x)), max(highest, p.y)
		}
	}
	step := niceStep(highest)
	highest = max(step, math.Ceil(highest/step)*step)
	px := func(v float64) float64 {
		return left + (math.Log10(v)-first)/max(last-first, 1e-9)*(width-left-right)
	}
	py := func(v float64) float64 { return height - bottom - v/highest*(height-top-bottom) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" font-family="sans-serif" font-size="13" fill="#777">`+"\n", width, height)
	fmt.Fprintf(&b, "<title>%[1]s</title>\n"+`<text x="%[2]d" y="24" font-size="16">%[1]s</text>`+"\n", html.EscapeString(c.title), left)
	for v := 0.0; v <= highest; v += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#888" stroke-opacity=".3"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, py(v), width-right, left-8, py(v)+4, short(v))
	}
	for _, p := range lines[0].points {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", px(p.x), height-bottom+20, short(p.x))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", width-right, height-14, html.EscapeString(c.x))
	fmt.Fprintf(&b, `<text x="%d" y="40">%s</text>`+"\n", left, html.EscapeString(c.y))
	for i, l := range lines {
		color := colors[i%len(colors)]
		var path []string
		for _, p := range l.points {
			path = append(path, fmt.Sprintf("%.1f %.1f", px(p.x), py(p.y)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s: %s</title></circle>`+"\n", px(p.x), py(p.y), color, short(p.x), number(p.y))
		}
		fmt.Fprintf(&b, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, "L"), color)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+12, height-bottom-12-18*i, color, html.EscapeString(l.name))
	}
	b.WriteString("</svg>\n")
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
