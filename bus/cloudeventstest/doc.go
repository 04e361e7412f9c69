// Package cloudeventstest holds leat's reading and writing of CloudEvents against the CloudEvents SDK. It is a module
// of its own, so that leat does not depend on the SDK.
package cloudeventstest
