package fxmodule

import "go.uber.org/fx"

// RunMain is Main without the exit.
func RunMain(options ...fx.Option) int { return run(options...) }
