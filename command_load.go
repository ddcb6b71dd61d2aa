package callback

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/cli"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

// newRun returns a run that keeps its task in a folder. Its errors name the flag.
func newRun(o *cli.Run, log *cli.Progress, folder string) (*run, error) {
	h, err := loadQuietly(func() (app *App, h *Handler, err error) {
		// The command does not survive a power failure, so its store is not synced.
		store := &SQLiteEngine{Folder: folder, Sync: caddy.Duration(time.Hour)}
		app = &App{EngineRaw: caddyconfig.JSONModuleObject(store, "engine", "sqlite", nil)}
		if o.Config != "" || o.Adapter != "" {
			app.Delivery, err = loadDelivery(o.Config, o.Adapter)
		}
		return app, &Handler{Timeout: caddy.Duration(o.Timeout), Format: o.Format}, err
	})
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	r := &run{app: h.app, h: h, request: o.Request, log: log}
	target, flag := o.CallbackURL, "--callback-url"
	if target == "" {
		flag = "--data: " + h.Field
		if target, err = namedIn(r.request, h.Field); err != nil {
			return nil, fmt.Errorf("--data: %w", err)
		}
	}
	if target == "" {
		return r, nil
	}
	u, err := h.app.Delivery.trusted.CheckURL(target)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if r.callback, err = h.newCallback(u.String(), true, "", caddy.NewReplacer()); err != nil {
		return nil, err
	}
	r.host = safedial.HostPort(u)
	r.callback.Traceparent = r.request.Header.Get("Traceparent")
	return r, nil
}

// loadDelivery returns the delivery options of a configuration, or nil if it has none.
func loadDelivery(file, adapter string) (*Delivery, error) {
	text, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var config struct {
		Apps struct {
			Callback struct {
				Delivery *Delivery `json:"delivery"`
			} `json:"callback"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return config.Apps.Callback.Delivery, nil
}

// loadSecrets returns the keys in the delivery options of a configuration as they are
// written: those of the Caddyfile here if none is named.
func loadSecrets(file, adapter string) ([]string, error) {
	delivery, err := loadDelivery(file, adapter)
	if err != nil || delivery == nil {
		return nil, err
	}
	return delivery.Secret, nil
}

// namedIn returns the callback URL in the request's body, or "" if there is none.
func namedIn(r *http.Request, field string) (string, error) {
	value, _, err := bodies.Find(r, bodies.Options{Field: field, Limit: r.ContentLength})
	return value, err
}

// loadQuietly provisions the app and a handler, with a log of warnings only. It calls f
// for the configuration once that log is in place.
func loadQuietly(f func() (*App, *Handler, error)) (*Handler, error) {
	apps := make(caddy.ModuleMap)
	ctx, err := quietContext(apps)
	if err != nil {
		return nil, err
	}
	app, h, err := f()
	if err != nil {
		return nil, err
	}
	apps["callback"] = caddyconfig.JSON(app, nil)
	module, err := ctx.LoadModuleByID("http.handlers.callback", caddyconfig.JSON(h, nil))
	if err != nil {
		return nil, err
	}
	return module.(*Handler), nil
}

// quietContext returns a Caddy context whose modules log warnings only.
func quietContext(apps caddy.ModuleMap) (caddy.Context, error) {
	return caddy.ProvisionContext(&caddy.Config{
		AppsRaw: apps,
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: "WARN"}}}},
	})
}

// quietLog returns a logger of warnings for code outside of modules.
func quietLog() (*zap.Logger, error) {
	if _, err := quietContext(nil); err != nil {
		return nil, err
	}
	return caddy.Log().Named("callback"), nil
}
