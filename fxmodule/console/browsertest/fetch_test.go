package browsertest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	axeArchive = "axe-core-4.14.1.tgz"
	axeSum     = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==" // its SHA-512, in base64
	axeFile    = "package/axe.min.js"                                                                       // the only file that is read

	fetchTimeout = time.Minute // for all of fetching
	maxArchive   = 16 << 20    // bytes
)

// errAltered is the error of an archive that is not the one that was chosen.
var errAltered = errors.New("the archive has another checksum")

// axeSource returns axe-core: the file that LEAT_TEST_AXE names, or that of the npm registry, which is kept in the user's
// cache. It skips the test if there is none, as without a network.
func axeSource(t *testing.T) string {
	if file := os.Getenv("LEAT_TEST_AXE"); file != "" {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(source)
	}
	ctx, cancel := context.WithTimeout(t.Context(), fetchTimeout)
	defer cancel()
	cache, err := os.UserCacheDir()
	var source string
	if err == nil {
		source, err = fetchAxe(ctx, npmRegistry(ctx), filepath.Join(cache, "leat"), axeSum)
	}
	if errors.Is(err, errAltered) {
		require.NoError(t, err)
	}
	if err != nil {
		t.Skipf("accessibility is not tested, because axe-core can't be fetched: %v; to test it, let LEAT_TEST_AXE name an axe.min.js", err)
	}
	return source
}

// npmRegistry returns the URL of the registry that npm is configured to use.
func npmRegistry(ctx context.Context) string {
	configured := cmp.Or(os.Getenv("npm_config_registry"), os.Getenv("NPM_CONFIG_REGISTRY"))
	if configured == "" {
		if out, err := exec.CommandContext(ctx, "npm", "config", "get", "registry").Output(); err == nil {
			configured = strings.TrimSpace(string(out))
		}
	}
	if !strings.HasPrefix(configured, "http") { // npm says undefined if it has none
		return "https://registry.npmjs.org"
	}
	return strings.TrimRight(configured, "/")
}

// fetchAxe returns axe-core from the archive in a directory, or else from a registry, whose archive it keeps there. The
// archive's checksum is verified each time.
func fetchAxe(ctx context.Context, registry, dir, sum string) (string, error) {
	kept := filepath.Join(dir, axeArchive)
	if archive, err := os.ReadFile(kept); err == nil && sumOf(archive) == sum {
		return unpackAxe(archive)
	}
	address := registry + "/axe-core/-/" + axeArchive
	archive, err := download(ctx, address)
	if err != nil {
		return "", err
	}
	if got := sumOf(archive); got != sum {
		return "", fmt.Errorf("%w: %s has sha512-%s, not sha512-%s", errAltered, address, got, sum)
	}
	if err := keep(kept, archive); err != nil {
		return "", err
	}
	return unpackAxe(archive)
}

func sumOf(archive []byte) string {
	sum := sha512.Sum512(archive)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func download(ctx context.Context, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", address, response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, maxArchive))
}

// keep writes a file at once, since tests of other processes may read it.
func keep(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = part.Write(content)
	if err = errors.Join(err, part.Close()); err == nil {
		err = os.Rename(part.Name(), file)
	}
	if err != nil {
		_ = os.Remove(part.Name())
	}
	return err
}

// unpackAxe returns axe.min.js of an archive.
func unpackAxe(archive []byte) (string, error) {
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return "", err
	}
	for files := tar.NewReader(unzipped); ; {
		header, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("%s in %s: %w", axeFile, axeArchive, err)
		}
		if header.Name == axeFile {
			source, err := io.ReadAll(io.LimitReader(files, maxArchive))
			return string(source), err
		}
	}
}

func TestFetchAxe_verifiesAndKeepsTheArchive(t *testing.T) {
	good := archiveOf(t, "package/README.md", "no", axeFile, "yes", "other/axe.min.js", "no")
	served, asked := good, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.URL.Path != "/mirror/axe-core/-/"+axeArchive {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write(served)
	}))
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "leat")
	fetch := func(registry string) (string, error) { return fetchAxe(t.Context(), registry, dir, sumOf(good)) }

	served = archiveOf(t, axeFile, "altered")
	_, err := fetch(server.URL + "/mirror")
	require.ErrorIs(t, err, errAltered)
	require.NoFileExists(t, filepath.Join(dir, axeArchive))
	served = good
	_, err = fetch(server.URL)
	require.ErrorContains(t, err, "404 Not Found")
	require.NotErrorIs(t, err, errAltered)

	for range 2 {
		source, err := fetch(server.URL + "/mirror")
		require.NoError(t, err)
		require.Equal(t, "yes", source)
	}
	require.Equal(t, 3, asked, "the archive is kept")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)

	require.NoError(t, os.WriteFile(filepath.Join(dir, axeArchive), archiveOf(t, axeFile, "altered"), 0o600))
	source, err := fetch(server.URL + "/mirror")
	require.NoError(t, err)
	require.Equal(t, "yes", source, "what is kept is verified, too")

	_, err = unpackAxe(archiveOf(t, "package/README.md", "no"))
	require.ErrorIs(t, err, io.EOF)
}

func TestNPMRegistry_isTheConfiguredOne(t *testing.T) {
	t.Setenv("PATH", "") // no npm
	t.Setenv("npm_config_registry", "")
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	require.Equal(t, "https://registry.npmjs.org", npmRegistry(t.Context()))
	t.Setenv("NPM_CONFIG_REGISTRY", "https://npm.example/upper/")
	require.Equal(t, "https://npm.example/upper", npmRegistry(t.Context()))
	t.Setenv("npm_config_registry", "https://npm.example/lower")
	require.Equal(t, "https://npm.example/lower", npmRegistry(t.Context()))

	t.Setenv("npm_config_registry", "")
	t.Setenv("NPM_CONFIG_REGISTRY", "")
	for said, want := range map[string]string{"https://npm.example/mirror/": "https://npm.example/mirror", "undefined": "https://registry.npmjs.org"} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "npm"), []byte("#!/bin/sh\necho "+said+"\n"), 0o700))
		t.Setenv("PATH", dir)
		require.Equal(t, want, npmRegistry(t.Context()))
	}
}

// archiveOf returns an archive of files: names and contents in turn.
func archiveOf(t *testing.T, files ...string) []byte {
	var archive bytes.Buffer
	zipped := gzip.NewWriter(&archive)
	out := tar.NewWriter(zipped)
	for i := 0; i < len(files); i += 2 {
		require.NoError(t, out.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))}))
		_, err := out.Write([]byte(files[i+1]))
		require.NoError(t, err)
	}
	require.NoError(t, out.Close())
	require.NoError(t, zipped.Close())
	return archive.Bytes()
}
