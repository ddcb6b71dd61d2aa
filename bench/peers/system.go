package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"time"
)

// system is a system to compare, as the file describes it. In Submit, Headers and Body,
// {id} is replaced by the task's ID, {callback} by the URL of its callback, {run} by the
// URL of the endpoint, and {data} by filler up to the size of the body.
type system struct {
	Name string `json:"name"`
	// Submit is the URL that a task is posted to. A response below 300 accepts it.
	Submit  string            `json:"submit"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	// Run are commands that run for as long as the system does. They are started before
	// a round, and killed after it in reverse order.
	Run [][]string `json:"run"`
	// Ready are addresses of the commands in Run, in the same order. Each must accept
	// connections before the next command starts. The last command needs none, because
	// the address of Submit must accept connections too.
	Ready []string `json:"ready"`
	// Clean are files and folders that are removed before a round.
	Clean []string `json:"clean"`
	// Crash and Restart are commands that kill and start a system that runs elsewhere,
	// for instance in containers. They are used instead of Run.
	Crash   [][]string `json:"crash"`
	Restart [][]string `json:"restart"`

	running []*exec.Cmd
}

// start starts the system and waits until it accepts connections.
func (s *system) start() error {
	for i, command := range s.Run {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting: %w", err)
		}
		s.running = append(s.running, cmd)
		if i < len(s.Ready) {
			if err := await(s.Ready[i]); err != nil {
				return err
			}
		}
	}
	if err := runAll(s.Restart); err != nil {
		return err
	}
	u, err := url.Parse(s.Submit)
	if err != nil {
		return err
	}
	return await(u.Host)
}

// clean removes what an earlier round has left.
func (s *system) clean() error {
	for _, path := range s.Clean {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// startTimeout bounds how long a system may take until it accepts connections.
const startTimeout = 2 * time.Minute

// await waits until an address accepts connections.
func await(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not accept connections: %w", addr, err)
		}
	}
}

// kill kills the system, as kill -9 does.
func (s *system) kill() error {
	for _, cmd := range slices.Backward(s.running) {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	for _, cmd := range s.running {
		_ = cmd.Wait() // it was killed
	}
	s.running = nil
	return runAll(s.Crash)
}

func runAll(commands [][]string) error {
	for _, command := range commands {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", command, err, out)
		}
	}
	return nil
}
