// Package openapitest checks responses of the API against its OpenAPI document. It is
// for tests only. It supports the keywords of JSON Schema that the document uses; any
// other keyword is an error.
package openapitest

import (
	"encoding/json"
	"fmt"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Document is an OpenAPI document.
type Document struct{ root map[string]any }

// Load parses a document.
func Load(text []byte) (*Document, error) {
	d := new(Document)
	if err := json.Unmarshal(text, &d.root); err != nil {
		return nil, fmt.Errorf("reading the document: %w", err)
	}
	if version, _ := d.root["openapi"].(string); !strings.HasPrefix(version, "3.1.") {
		return nil, fmt.Errorf("its version is %q", version)
	}
	return d, nil
}

// Operations returns the operations of the document, such as "GET /tasks/{id}", with
// the names of their parameters.
func (d *Document) Operations() map[string][]string {
	all := make(map[string][]string)
	for path, item := range object(d.root["paths"]) {
		for method, operation := range object(item) {
			names := []string{}
			for _, p := range list(object(operation)["parameters"]) {
				parameter := d.resolve(object(p))
				names = append(names, fmt.Sprint(parameter["in"], " ", parameter["name"]))
			}
			slices.Sort(names)
			all[strings.ToUpper(method)+" "+path] = names
		}
	}
	return all
}

// Check returns an error if the document does not describe the response. path is that
// of the request relative to the API's base, with its query.
func (d *Document) Check(method, path string, resp *http.Response, body []byte) error {
	operation := d.operation(method, path)
	if operation == nil {
		// A request that the document does not describe gets a problem document.
		if resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusMethodNotAllowed {
			return fmt.Errorf("%s %s is not in the document, and gets %s", method, path, resp.Status)
		}
		return d.valid(map[string]any{"$ref": "#/components/schemas/Problem"}, decoded(body), path)
	}
	answer := d.resolve(object(object(operation["responses"])[strconv.Itoa(resp.StatusCode)]))
	if answer == nil {
		return fmt.Errorf("%s %s: the document has no answer with %s", method, path, resp.Status)
	}
	content := object(answer["content"])
	if content == nil {
		if len(body) > 0 {
			return fmt.Errorf("%s %s: it has a body, and should have none", method, path)
		}
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	described := object(content[mediaType])
	if err != nil || described == nil {
		return fmt.Errorf("%s %s: the content type is %q", method, path, resp.Header.Get("Content-Type"))
	}
	if !strings.HasSuffix(mediaType, "json") {
		return nil
	}
	if !json.Valid(body) {
		return fmt.Errorf("%s %s: it is not JSON: %.200s", method, path, body)
	}
	return d.valid(object(described["schema"]), decoded(body), method+" "+path)
}

// operation returns the operation of the document for a request. It returns nil if
// there is none.
func (d *Document) operation(method, path string) map[string]any {
	path, _, _ = strings.Cut("/"+strings.TrimPrefix(path, "/"), "?")
	if item := object(object(d.root["paths"])[path]); item != nil {
		return object(item[strings.ToLower(method)])
	}
	for template, item := range object(d.root["paths"]) {
		before, after, hasID := strings.Cut(template, "{id}")
		if !hasID || !strings.HasPrefix(path, before) || !strings.HasSuffix(path, after) ||
			len(path) <= len(before)+len(after) || strings.Contains(path[len(before):len(path)-len(after)], "/") {
			continue
		}
		return object(object(item)[strings.ToLower(method)])
	}
	return nil
}

// resolve follows a reference.
func (d *Document) resolve(o map[string]any) map[string]any {
	ref, ok := o["$ref"].(string)
	if !ok {
		return o
	}
	target := any(d.root)
	for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		target = object(target)[name]
	}
	return object(target)
}

// valid returns an error if the schema does not allow the value.
func (d *Document) valid(schema map[string]any, value any, at string) error {
	schema = d.resolve(schema)
	if schema == nil {
		return fmt.Errorf("%s: there is no schema", at)
	}
	for keyword, want := range schema {
		if err := d.holds(schema, keyword, want, value, at); err != nil {
			return err
		}
	}
	return nil
}

func (d *Document) holds(schema map[string]any, keyword string, want, value any, at string) error {
	switch keyword {
	case "description", "default":
	case "type":
		if !slices.ContainsFunc(list(want), func(t any) bool { return isType(t, value) }) {
			return fmt.Errorf("%s: %v is no %v", at, value, want)
		}
	case "enum":
		if !slices.Contains(list(want), value) {
			return fmt.Errorf("%s: %v is none of %v", at, value, want)
		}
	case "minimum":
		if n, ok := value.(float64); ok && n < want.(float64) {
			return fmt.Errorf("%s: %v is less than %v", at, n, want)
		}
	case "format":
		if text, _ := value.(string); want != "date-time" {
			return fmt.Errorf("%s: format %v is not known", at, want)
		} else if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
	case "required":
		for _, name := range list(want) {
			if _, ok := object(value)[name.(string)]; !ok {
				return fmt.Errorf("%s: %s is missing", at, name)
			}
		}
	case "properties":
		for name, property := range object(want) {
			if member, ok := object(value)[name]; ok {
				if err := d.valid(object(property), member, at+"."+name); err != nil {
					return err
				}
			}
		}
	case "additionalProperties":
		for name := range object(value) {
			if _, ok := object(schema["properties"])[name]; !ok {
				return fmt.Errorf("%s: %s is not in the document", at, name)
			}
		}
	case "items":
		for i, item := range list(value) {
			if err := d.valid(object(want), item, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("%s: the keyword %s is not known", at, keyword)
	}
	return nil
}

func isType(name, value any) bool {
	switch v := value.(type) {
	case nil:
		return name == "null"
	case string:
		return name == "string"
	case bool:
		return name == "boolean"
	case float64:
		return name == "number" || name == "integer" && v == math.Trunc(v)
	case []any:
		return name == "array"
	default:
		return name == "object"
	}
}

func object(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}

// list returns v as a list. A single value becomes a list of one.
func list(v any) []any {
	if v == nil {
		return nil
	}
	if l, ok := v.([]any); ok {
		return l
	}
	return []any{v}
}

func decoded(body []byte) (v any) {
	if json.Unmarshal(body, &v) != nil {
		return nil
	}
	return v
}
