//go:build unix

package folder

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// writableByOthers has the write bits of the group and of others.
const writableByOthers = 0o022

func checkMode(path string, mode fs.FileMode) error {
	if mode.Perm()&writableByOthers == 0 {
		return nil
	}
	return fmt.Errorf("the store folder %s has mode %#o, so other users can put tasks into it; run: chmod 700 %q", path, mode.Perm(), path)
}

func checkOwner(path, kind string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return checkUser(path, kind, int(stat.Uid), os.Geteuid())
}

func checkUser(path, kind string, owner, self int) error {
	if owner == self || owner == 0 {
		return nil
	}
	return fmt.Errorf("the store %s %s belongs to the user %d, who can put tasks into it; run: chown -h %d %q", kind, path, owner, self, path)
}
