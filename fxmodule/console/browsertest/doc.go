// Package browsertest drives the console in a browser. It is a module of its own, so that nobody else needs its
// dependencies; its tests are skipped where there is no Chromium.
package browsertest
