package redisstore

import "github.com/redis/go-redis/v9"

// The value of a key is the claim's token while the message is in progress, and "=" and the token after it is
// done. If go-redis repeats a call after a broken connection, the script finds its first write by the token and
// returns the same result. Each script uses one key, so that it works on Redis Cluster.
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

// scripts are sent by their hash; go-redis sends the text if the server does not have it.
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
