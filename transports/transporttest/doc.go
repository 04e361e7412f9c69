// Package transporttest is the contract of [bus.Transport] as a test suite, one file a promise. Every
// transport runs it:
//
//	func TestConformance(t *testing.T) { transporttest.Run(t, harness) }
//
// Third parties are welcome to.
package transporttest
