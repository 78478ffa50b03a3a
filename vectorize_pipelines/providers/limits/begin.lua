-- Counts a call from a while from now, since it begins by then, and later than its key was lent. Times are microseconds
-- of the server's clock. KEYS: as in acquire.lua. ARGV: salt, prefix, id of the key, lease, tokens, the while.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end -- the state was begun again: it knows of no call
local time = redis.call('TIME')
local at = time[1] * 1000000 + time[2] + ARGV[6]
redis.call('ZADD', ARGV[2] .. 'uses:' .. ARGV[3], 'XX', at, ARGV[4] .. ':' .. ARGV[5])
return 1
