// Package transporttest tests that a transport keeps the promises of [driver.Transport], with one file per promise. Every
// transport runs it:
//
//	func TestConformance(t *testing.T) { transporttest.Run(t, harness) }
//
// Transports of other modules can run it, too.
package transporttest
