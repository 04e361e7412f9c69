package redisstore

import "github.com/redis/go-redis/v9"

// A key holds the token of the claim while the message is in progress, and the token behind a "="
// once it is done. A call that go-redis repeats after a broken connection meets its own first write,
// knows it by the token, and answers what the first one answered. Each script has one key, so that
// Redis Cluster can run it.
const (
	answerClaimed = 0 // the rest of a lease is positive
	answerDone    = -1
	answerLost    = 0
)

const claimScript = `
local held = redis.call('GET', KEYS[1])
if not held or held == ARGV[1] then
	redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
	return 0
end
if string.sub(held, 1, 1) == '=' then
	return -1
end
return math.max(redis.call('PTTL', KEYS[1]), 1)`

const renewScript = `
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
	return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1`

const doneScript = `
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] and held ~= '=' .. ARGV[1] then
	return 0
end
redis.call('SET', KEYS[1], '=' .. ARGV[1], 'PX', ARGV[2])
return 1`

const releaseScript = `
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
	return 0
end
redis.call('DEL', KEYS[1])
return 1`

// scripts are sent by their hash; go-redis sends the text where the server does not know it yet.
type scripts struct {
	claim, renew, done, release *redis.Script
}

func newScripts() scripts {
	return scripts{
		claim:   redis.NewScript(claimScript),
		renew:   redis.NewScript(renewScript),
		done:    redis.NewScript(doneScript),
		release: redis.NewScript(releaseScript),
	}
}
