package safedial_test

import (
	"fmt"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

// A client's URL is checked when it comes; the operator's own is trusted.
func Example() {
	policy, err := safedial.NewPolicy(safedial.Config{
		Allow: []string{"10.20.0.0/16"},
		Deny:  []string{"10.20.0.1"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, raw := range []string{
		"https://c.example/hook",
		"http://10.20.3.4/hook",
		"http://10.20.0.1/hook",
		"http://169.254.169.254/latest/meta-data/",
	} {
		_, err := policy.CheckURL(raw)
		fmt.Println(err)
	}
	_, err = policy.Trusted().CheckURL("http://localhost:9000/hook")
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// host 10.20.0.1 is a denied address
	// host 169.254.169.254 is a link-local address
	// <nil>
}
