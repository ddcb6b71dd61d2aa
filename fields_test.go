package callback

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"
)

// source is the parsed source of this package: its structs by name, and the names of
// those that are Caddy modules.
type source struct {
	structs map[string]*ast.StructType
	modules map[string]bool
}

func readSource(t *testing.T) source {
	t.Helper()
	src := source{structs: make(map[string]*ast.StructType), modules: make(map[string]bool)}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					src.structs[n.Name.Name] = s
				}
			case *ast.CallExpr:
				if name := registeredType(n); name != "" {
					src.modules[name] = true
				}
			}
			return true
		})
	}
	if len(src.modules) == 0 {
		t.Fatal("no call of caddy.RegisterModule(new(T)) was found")
	}
	return src
}

// registeredType returns T of caddy.RegisterModule(new(T)).
func registeredType(call *ast.CallExpr) string {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != "RegisterModule" || len(call.Args) != 1 {
		return ""
	}
	made, ok := call.Args[0].(*ast.CallExpr)
	if !ok || len(made.Args) != 1 {
		return ""
	}
	typ, ok := made.Args[0].(*ast.Ident)
	if !ok {
		return ""
	}
	return typ.Name
}

// optionField is a field that is set from JSON.
type optionField struct {
	owner, name string // the struct, and the field in Go
	json        string
	doc         string // on one line
}

var tagJSON = regexp.MustCompile(`json:"([^",]*)`)

// options returns the JSON fields of a struct and of the structs in it.
func (src source) options(name string) (fields []optionField) {
	for _, f := range src.structs[name].Fields.List {
		if f.Tag == nil {
			continue
		}
		tag := tagJSON.FindStringSubmatch(f.Tag.Value)
		if tag == nil || tag[1] == "-" {
			continue
		}
		fields = append(fields, optionField{
			owner: name, name: f.Names[0].Name, json: tag[1],
			doc: strings.Join(strings.Fields(f.Doc.Text()), " "),
		})
		ast.Inspect(f.Type, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && src.structs[id.Name] != nil {
				fields = append(fields, src.options(id.Name)...)
			}
			return true
		})
	}
	return fields
}

// saysDefault reports whether the last sentence of a comment gives the default, or says
// that the field is required.
func saysDefault(doc string) bool {
	i := max(strings.LastIndex(doc, "Default: "), strings.LastIndex(doc, "Required."))
	return i >= 0 && strings.HasSuffix(doc, ".") && !strings.Contains(doc[i:], ". ")
}

func TestJSONFieldsAreDocumented(t *testing.T) {
	t.Parallel()
	src := readSource(t)
	page := readPages(t)
	for _, module := range slices.Sorted(maps.Keys(src.modules)) {
		for _, f := range src.options(module) {
			if f.json == "" || f.json != strings.ToLower(f.json) {
				t.Errorf("%s.%s: the JSON name %q is not in snake_case", f.owner, f.name, f.json)
			}
			if !saysDefault(f.doc) {
				t.Errorf("%s.%s: the comment must end with a default or Required: %q", f.owner, f.name, f.doc)
			}
			if !strings.Contains(page, "`"+f.json+"`") && !strings.Contains(page, `"`+f.json+`"`) {
				t.Errorf("%s.%s: %s is missing in docs/", f.owner, f.name, f.json)
			}
		}
	}
}

// readPages returns the text of all pages in docs/.
func readPages(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// documentedValue matches a default that is given as a value.
var documentedValue = regexp.MustCompile("Default: `([^`]+)`")

func TestDefaultsMatchComments(t *testing.T) {
	ctx, err := caddy.ProvisionContext(&caddy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := ctx.App("callback")
	if err != nil {
		t.Fatal(err)
	}
	handler := new(Handler)
	if err := handler.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	provisioned := map[string]reflect.Value{
		"App":      reflect.ValueOf(app).Elem(),
		"Delivery": reflect.ValueOf(app.(*App).Delivery).Elem(),
		"Handler":  reflect.ValueOf(handler).Elem(),

		"SQLiteEngine": reflect.ValueOf(app.(*App).engine).Elem(),
	}
	src := readSource(t)
	compared := 0
	for module := range src.modules {
		for _, f := range src.options(module) {
			documented := documentedValue.FindStringSubmatch(f.doc)
			if documented == nil || !provisioned[f.owner].IsValid() {
				continue
			}
			value := provisioned[f.owner].FieldByName(f.name)
			if value.IsZero() {
				continue // the default is applied where it is used
			}
			compared++
			if got := written(value); got != documented[1] && f.name != "Folder" {
				t.Errorf("%s.%s: the comment says %s, and it is %s", f.owner, f.name, documented[1], got)
			}
		}
	}
	if compared < 12 {
		t.Errorf("only %d defaults were compared", compared)
	}
}

// written formats a value as comments do.
func written(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case caddy.Duration:
		return shortDuration(value)
	case []caddy.Duration:
		words := make([]string, len(value))
		for i, wait := range value {
			words[i] = shortDuration(wait)
		}
		return strings.Join(words, " ")
	case *bool:
		return strconv.FormatBool(*value)
	case int, int64:
		return strconv.FormatInt(v.Int(), 10)
	default:
		return fmt.Sprint(value)
	}
}

// shortDuration formats 2h0m0s as 2h, and 720h as 30d.
func shortDuration(d caddy.Duration) string {
	const day = caddy.Duration(24 * time.Hour)
	if d >= 2*day && d%day == 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	s := time.Duration(d).String()
	for _, nothing := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, nothing) {
			s = s[:len(s)-len("0s")]
		}
	}
	return s
}

// documentedIn has the page with the table of each struct's options.
var documentedIn = map[string]string{
	"App":      "docs/options.md",
	"Delivery": "docs/options.md",
	"Handler":  "docs/callback.md",
	"Inbox":    "docs/callback_inbox.md",

	"SQLiteEngine": "docs/options.md",
	"NATSEngine":   "docs/options.md",
}

func TestDocumentedDefaultsMatchComments(t *testing.T) {
	t.Parallel()
	src := readSource(t)
	compared := 0
	for module := range src.modules {
		for _, f := range src.options(module) {
			documented := documentedValue.FindStringSubmatch(f.doc)
			if documented == nil || documentedIn[f.owner] == "" {
				continue
			}
			page, err := os.ReadFile(documentedIn[f.owner])
			if err != nil {
				t.Fatal(err)
			}
			row := regexp.MustCompile("(?m)^\\| `" + f.json + "` \\|.*\\| (.*) \\|$").FindSubmatch(page)
			if row == nil {
				continue // part of another option in the Caddyfile
			}
			compared++
			// Further values of the same option may follow: 24h 100000.
			cell := strings.TrimPrefix(string(row[1]), "`")
			size, err := humanize.ParseBytes(strings.TrimSuffix(cell, "`"))
			if !strings.HasPrefix(cell, documented[1]) && (err != nil || strconv.FormatUint(size, 10) != documented[1]) {
				t.Errorf("%s.%s: the comment says %s, the page %s", f.owner, f.name, documented[1], row[1])
			}
		}
	}
	if compared < 15 {
		t.Errorf("only %d defaults were compared", compared)
	}
}
