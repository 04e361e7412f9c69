package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
)

// LocalURL returns the URL by which this machine reaches an endpoint with this configuration in another process. It returns an error
// if the configuration is invalid, or if the port is chosen by the system.
func (a Endpoint) LocalURL() (*url.URL, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	if path, isSocket, _ := socketPath(a.Addr); isSocket {
		return &url.URL{Scheme: "unix", Path: filepath.ToSlash(path)}, nil
	}
	host, port, err := net.SplitHostPort(a.Addr)
	if err != nil {
		return nil, err
	}
	if port == "0" {
		return nil, fmt.Errorf("admin address %q has a port that the system chooses, which is unknown here; the log of the process has its URL, for leat --url", a.Addr)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
	if a.Cert != "" {
		u.Scheme = "https"
	}
	return u, nil
}

// DialRunning reaches the endpoint of another process on this machine that has the same configuration. In place of a host name, which
// may be unknown here, it checks that the process has the certificate of Cert. It blocks as [Dial] does.
func (a Endpoint) DialRunning(ctx context.Context) (*Client, error) {
	u, err := a.LocalURL()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{}
	if a.Cert != "" {
		own, err := firstCertificate(a.Cert)
		if err != nil {
			return nil, fmt.Errorf("LEAT_ADMIN_CERT: %w", err)
		}
		transport.TLSClientConfig = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection accepts one certificate only
			VerifyConnection: func(state tls.ConnectionState) error {
				if !bytes.Equal(state.PeerCertificates[0].Raw, own.Raw) {
					return errors.New("the process has another certificate than the file of LEAT_ADMIN_CERT; if the file is newer, restart the process")
				}
				return nil
			},
		}
	}
	client, err := dial(ctx, u, a.Token, transport)
	if _, answered := errors.AsType[*statusError](err); err != nil && !answered && ctx.Err() == nil {
		return nil, fmt.Errorf("%w; is a process of the service running here, with the same LEAT_ADMIN?", err)
	}
	return client, err
}

// firstCertificate reads a certificate from the start of its chain.
func firstCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, fmt.Errorf("%s has no certificate", path)
}
