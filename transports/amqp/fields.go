package amqp

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// fieldText returns an AMQP field as a header: numbers in decimal, booleans as true and false, timestamps
// in RFC 3339, byte arrays in base64, void as "", tables and arrays as JSON with sorted keys.
func fieldText(field any) string {
	switch v := field.(type) {
	case string:
		return v
	case nil:
		return ""
	case bool:
		return strconv.FormatBool(v)
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case amqp.Decimal:
		return decimalText(v)
	case amqp.Table, []any:
		text, err := json.Marshal(jsonValue(v))
		if err != nil { // a number that JSON lacks, such as NaN
			return fmt.Sprint(v)
		}
		return string(text)
	default: // the integers
		return fmt.Sprint(v)
	}
}

// decimalText returns the decimal, value·10^-scale, as text.
func decimalText(d amqp.Decimal) string {
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(d.Scale)), nil)
	return new(big.Rat).SetFrac(big.NewInt(int64(d.Value)), scale).FloatString(int(d.Scale))
}

// jsonValue converts values for which JSON has no type into text, recursively.
func jsonValue(field any) any {
	switch v := field.(type) {
	case amqp.Table:
		m := make(map[string]any, len(v))
		for key, value := range v {
			m[key] = jsonValue(value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = jsonValue(value)
		}
		return list
	case []byte, time.Time, amqp.Decimal:
		return fieldText(v)
	default:
		return v
	}
}

// maxCount is the limit of counters.
const maxCount = 1 << 30

// fieldInt reads a counter of any integer type, which any producer may have written, and limits it to 0 to maxCount.
func fieldInt(field any) int {
	v, n := reflect.ValueOf(field), int64(0)
	switch {
	case v.CanInt():
		n = v.Int()
	case v.CanUint():
		n = int64(min(v.Uint(), maxCount))
	}
	return int(min(max(n, 0), maxCount))
}

// fieldName returns a name that any producer may have written as valid UTF-8.
func fieldName(name string) string { return strings.ToValidUTF8(name, "\uFFFD") }

// shortName returns a fieldName that fits on the wire.
func shortName(name string) string {
	if len(name) > maxNameBytes {
		name = name[:maxNameBytes] // a rune that is cut is replaced, which may make the name longer
	}
	name = fieldName(name)
	for len(name) > maxNameBytes {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name
}
