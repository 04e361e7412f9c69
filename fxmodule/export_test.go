package fxmodule

import "go.uber.org/fx"

// RunMain returns Main without the exit.
func RunMain(options ...fx.Option) int { return run(options...) }
