package form_test

import (
	"fmt"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

func ExampleEncode() {
	cb := form.Encode(form.Response{
		ContentType: "application/json",
		Body:        []byte(`{"response": "example response", "tokens": 12, "scores": [0.50, 1]}`),
	}, 8<<20)
	fmt.Println(cb.ContentType)
	fmt.Println(string(cb.Body))
	// Output:
	// application/x-www-form-urlencoded
	// response=example+response&tokens=12&scores=%5B0.50%2C1%5D
}

func ExampleEncodeError() {
	cb := form.EncodeError("the task timed out after 1h")
	fmt.Println(string(cb.Body))
	// Output:
	// error=the+task+timed+out+after+1h
}
