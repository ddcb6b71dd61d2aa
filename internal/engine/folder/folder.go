// Package folder checks the permissions of a store's folder. A user who can write to it
// can make the gateway call any URL: the stored task itself says whether its URL is the
// operator's.
package folder

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Check returns an error if users other than root and the owner of this process can
// change the folder's contents. This is the case if the folder, or the target of a
// symbolic link, is writable by its group or by others or belongs to another user, or
// if the link itself belongs to another user. The error says what to do. On Windows,
// where mode bits do not control access, Check only requires that the folder exists.
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
