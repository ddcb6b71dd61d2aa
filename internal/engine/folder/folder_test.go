//go:build unix

package folder

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckRefusesWritableByOthers(t *testing.T) {
	t.Parallel()
	for mode, want := range map[fs.FileMode]string{
		0o700: "", 0o755: "", 0o750: "", 0o500: "", 0o777: "chmod 700", 0o770: "chmod 700", 0o702: "chmod 700", 0o777 | fs.ModeSticky: "chmod 700",
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			folder, link := filepath.Join(dir, "store"), filepath.Join(dir, "link")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(folder, mode); err != nil { // independent of the umask
				t.Fatal(err)
			}
			if err := os.Symlink(folder, link); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{folder, link} {
				wants(t, Check(path), want)
				if err := Check(path); err != nil && !strings.Contains(err.Error(), folder) {
					t.Errorf("%v does not name the folder %s", err, folder)
				}
			}
		})
	}
}

func TestCheckRefusesNonFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "none"), link); err != nil {
		t.Fatal(err)
	}
	wants(t, Check(file), "is a file")
	wants(t, Check(link), "no such file")
	wants(t, Check(filepath.Join(dir, "none")), "no such file")
}

func TestCheckRefusesForeignOwner(t *testing.T) {
	t.Parallel()
	wants(t, checkUser("/srv", "folder", 7, 7), "")
	wants(t, checkUser("/srv", "folder", 0, 7), "")
	wants(t, checkUser("/srv", "link", 8, 7), `the store link /srv belongs to the user 8, who can put tasks into it; run: chown -h 7 "/srv"`)
	wants(t, checkUser("/srv", "folder", 8, 0), "chown -h 0")
}

func wants(t *testing.T, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v, want %q", err, text)
	}
}
