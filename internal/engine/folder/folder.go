// Package folder checks the folder of a store. A user who can write to it can make
// the gateway call anything: a stored task says itself whether its URL is the operator's.
package folder

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Check returns an error that says what to do if somebody other than this process's
// user and root can change what is in the folder: if it, or the folder that a
// symbolic link stands for, is writable by its group or by others, or belongs to
// another user, or if the link does. On Windows, where access is not a matter of
// mode bits, it checks only that there is a folder.
func Check(path string) error {
	link, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("checking the store folder: %w", err)
	}
	if link.Mode()&fs.ModeSymlink != 0 {
		if err := checkOwner(path, "link", link); err != nil {
			return err
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return fmt.Errorf("checking the store folder: %w", err)
		}
	}
	folder, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("checking the store folder: %w", err)
	}
	if !folder.IsDir() {
		return fmt.Errorf("the store folder %s is a file; name a folder, or remove the file", path)
	}
	if err := checkOwner(path, "folder", folder); err != nil {
		return err
	}
	return checkMode(path, folder.Mode())
}
